"""Rows of any source, documents, batches, rows that hold evaluated text."""
