"""All SQL of the service. Functions take a session and never commit: the caller does, once, at the edge."""
