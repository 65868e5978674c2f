"""Files as versions of smh wrote them, kept for ever: what later versions must read."""
