"""What a person without other servers needs to see Lathe work: a local peer of the Hub."""
