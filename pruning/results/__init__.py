"""What a job leaves behind: identity, stage cache, result, tracker, report."""
