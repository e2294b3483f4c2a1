"""From text to token batches to second moments per site."""
