"""What a person looks at: progress, pictures, record and report of a run."""
