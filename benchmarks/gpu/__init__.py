"""What only a GPU can show, a part a file: benchmarks/gpu.sh runs them all, each in a process of its own."""
