"""From a call of publish() to its outcome: pipelines, their batches and their replies."""
