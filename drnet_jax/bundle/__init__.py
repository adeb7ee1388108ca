"""Bundle: a trained model as files that outlive this package: an export."""
