"""The sides of `QRAGRetriever` that face a framework, one module each; neither knows the other."""
