"""What is counted and measured: the families, their bounded labels, and the tallies behind them."""
