"""SwiftKV models for SGLang. Nothing is in this release yet."""
