"""What smh costs: every figure over a raw baseline of the same framework, measured interleaved."""
