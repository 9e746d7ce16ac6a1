//! How much of a file is believed before it is read.

/// Bounds on what a header may claim. They are far above every published file and far below what would hurt; each
/// count is also held against the bytes that are left, before anything is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the whole header (metadata and tensor infos): 256 MiB. The largest published vocabularies take 20 MiB.
    pub header_bytes: u64,
    /// Metadata entries: 65,536. Published files have below 100.
    pub metadata: u64,
    /// Tensors in one file: 1,048,576. Published files have below 5,000.
    pub tensors: u64,
    /// Bytes of a metadata key or tensor name: 65,535, the format's own bound on keys.
    pub name_bytes: u64,
    /// Bytes of one text value: 64 MiB. Chat templates take up to 100 KiB.
    pub text_bytes: u64,
    /// Elements up to which a list of numbers or truth values is kept; longer ones are counted and skipped: 16,384.
    /// Lists per layer and per tensor dimension matter to a plan, lists per token do not.
    pub kept_elements: u64,
    /// How deep lists may lie in lists: 4. Nested lists are skipped, never kept; llama.cpp refuses them.
    pub nesting: u32,
    /// Bytes of the first read, doubled with every further one: 64 KiB.
    pub first_read: usize,
    /// Bytes up to which reads grow: 8 MiB.
    pub largest_read: usize,
    /// Files of a split set: 10,000.
    pub shards: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_bytes: 256 << 20,
            metadata: 1 << 16,
            tensors: 1 << 20,
            name_bytes: 65_535,
            text_bytes: 64 << 20,
            kept_elements: 16_384,
            nesting: 4,
            first_read: 64 << 10,
            largest_read: 8 << 20,
            shards: 10_000,
        }
    }
}
