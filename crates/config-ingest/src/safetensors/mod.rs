//! safetensors: headers, indexes, shards.
