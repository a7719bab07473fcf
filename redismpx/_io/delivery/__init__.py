"""From an event to the user's code: the buffered events of one subscription, its worker and its reader."""
