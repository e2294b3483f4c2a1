"""From losses and milliseconds to an allocation."""
