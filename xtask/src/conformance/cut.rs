//! Pieces of the engine's own source that its libraries do not export, cut out when the checker is built: the
//! scheduler's structure, and what a CUDA device answers while a graph is planned. Nothing of it is kept here.

use std::path::Path;

use super::install::read;

/// From the line that starts with `start` through the first line that is `end`.
fn piece(text: &str, start: &str, end: &str) -> Option<String> {
    let at = if text.starts_with(start) { 0 } else { text.find(&format!("\n{start}"))? + 1 };
    let rest = text.get(at..)?;
    let length = rest.find(&format!("\n{end}\n"))? + end.len() + 2;
    rest.get(..length).map(str::to_owned)
}

/// The scheduler's structure, to ask its allocator for sizes.
pub(crate) fn scheduler(source: &Path) -> Result<String, String> {
    let path = source.join("ggml/src/ggml-backend.cpp");
    let text = read(&path)?;
    let mut out = String::new();
    for limit in ["GGML_SCHED_MAX_SPLIT_INPUTS", "GGML_SCHED_MAX_COPIES", "GGML_SCHED_MAX_BACKENDS"] {
        let define = text.lines().find(|line| line.starts_with(&format!("#define {limit} ")));
        if let Some(define) = define {
            out.push_str(define);
            out.push('\n');
        }
    }
    for name in ["ggml_backend_sched_split", "ggml_backend_sched"] {
        let cut = piece(&text, &format!("struct {name} {{"), "};");
        out.push_str(&cut.ok_or_else(|| format!("{}: no struct {name}", path.display()))?);
    }
    Ok(out)
}

/// A function, structure or enumeration of the CUDA backend.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    file: &'static str,
    start: &'static str,
    end: &'static str,
    /// Not in every build.
    optional: bool,
}

const fn wanted(file: &'static str, start: &'static str) -> Wanted {
    Wanted { file, start, end: "}", optional: false }
}

const fn optional(file: &'static str, start: &'static str) -> Wanted {
    Wanted { file, start, end: "}", optional: true }
}

const fn data(file: &'static str, start: &'static str) -> Wanted {
    Wanted { file, start, end: "};", optional: false }
}

const CUDA: [Wanted; 17] = [
    wanted("common.cuh", "static bool amd_mfma_available("),
    wanted("common.cuh", "static bool amd_wmma_available("),
    wanted("common.cuh", "static bool volta_mma_available("),
    wanted("common.cuh", "static bool turing_mma_available("),
    optional("fwht.cu", "bool ggml_cuda_op_mul_mat_use_fwht("),
    data("fattn-common.cuh", "struct ggml_cuda_flash_attn_ext_f16_extra_data {"),
    wanted(
        "fattn-common.cuh",
        "static inline ggml_cuda_flash_attn_ext_f16_extra_data ggml_cuda_flash_attn_ext_get_f16_extra_data(",
    ),
    optional("fattn-mma-f16.cuh", "static constexpr __host__ __device__ bool ggml_cuda_flash_attn_ext_mma_f16_may_use_sparse("),
    optional("fattn.cu", "bool ggml_cuda_flash_attn_ext_mma_f16_shall_use_sparse("),
    data("fattn.cu", "enum best_fattn_kernel {"),
    wanted("fattn.cu", "static bool ggml_cuda_fattn_kv_type_supported("),
    wanted("fattn.cu", "static best_fattn_kernel ggml_cuda_get_best_fattn_kernel("),
    wanted("fattn.cu", "size_t ggml_cuda_flash_attn_ext_get_alloc_size("),
    wanted("fattn.cu", "bool ggml_cuda_flash_attn_ext_supported("),
    optional("lightning-indexer.cu", "bool ggml_cuda_lightning_indexer_supported("),
    wanted("ggml-cuda.cu", "static size_t ggml_backend_cuda_buffer_type_get_alloc_size("),
    wanted("ggml-cuda.cu", "static bool ggml_backend_cuda_device_supports_op("),
];

/// What a CUDA device answers: which operations it supports, what a tensor takes, which operations it takes over.
pub(crate) fn cuda(source: &Path) -> Result<String, String> {
    let folder = source.join("ggml/src/ggml-cuda");
    let mut out = String::new();
    for line in read(&folder.join("common.cuh"))?.lines() {
        if line.starts_with("#define GGML_CUDA_CC_") || line.starts_with("#define MATRIX_ROW_PADDING") {
            out.push_str(line);
            out.push('\n');
        }
    }
    let common = read(&folder.join("fattn-common.cuh"))?;
    out.extend(common.lines().filter(|line| line.starts_with("#define FATTN_KQ_STRIDE ")).map(|line| format!("{line}\n")));
    let batch = wanted("ggml-cuda.cu", "static int64_t get_op_batch_size(");
    for wanted in CUDA.into_iter().chain([batch]) {
        let path = folder.join(wanted.file);
        match piece(&read(&path)?, wanted.start, wanted.end) {
            Some(cut) => out.push_str(&cut),
            None if wanted.optional => {}
            None => return Err(format!("{}: found no {}", path.display(), wanted.start)),
        }
    }
    Ok(out)
}
