"""What a corpus is like, and how far two corpora lie apart."""
