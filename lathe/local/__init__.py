"""Real servers on one machine: PostgreSQL and Valkey as child processes, for `lathe up`, the demo and the tests."""
