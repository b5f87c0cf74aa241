"""What a recipe will take, said before anything is run: memory, disk, time and size of each stage."""
