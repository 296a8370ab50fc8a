"""Judging and showing: statistics, leaderboards, the page, exchange, published results."""
