"""What the pages of docs/ and the figures of benchmarks/results/ were made with: `python -m benchmarks.NAME`."""
