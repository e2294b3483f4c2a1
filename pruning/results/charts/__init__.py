"""The charts of a study: the page shows them, and the pictures for papers."""
