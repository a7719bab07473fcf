"""One connection after another, and what is subscribed on each."""
