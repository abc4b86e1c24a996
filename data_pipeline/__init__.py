"""From raw documents to resumable streams of packed token rows. No torch."""
