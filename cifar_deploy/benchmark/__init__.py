"""Benchmark: runtimes side by side, the card watched meanwhile, MLPerf's scenarios."""
