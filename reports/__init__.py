"""What is made of an `AuditReport`, each derived from the report alone."""
