"""What is kept of documents that were read, where, and until when."""
