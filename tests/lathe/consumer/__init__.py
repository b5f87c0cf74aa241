"""A project that uses Lathe as its users do: typed strictly, against what is installed."""
