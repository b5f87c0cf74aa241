"""GGUF: the file that llama.cpp loads, written from a calibrated state."""
