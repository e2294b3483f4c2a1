"""Published tables, the recipes that make ours, and our numbers beside them."""
