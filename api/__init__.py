"""HTTP and nothing else: turns a request into a call on s2d and the result into a response."""
