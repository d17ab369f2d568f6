"""A result on its way out: merged into its base, converted for llama.cpp, or put on the Hub."""
