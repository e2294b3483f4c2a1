"""Quality of a model: token perplexity and lm-eval tasks, gathered in suites."""
