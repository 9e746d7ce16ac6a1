//! GGUF files: metadata and tensor infos of llama.cpp models.
