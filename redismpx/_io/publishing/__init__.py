"""From a call of publish() to its outcome."""
