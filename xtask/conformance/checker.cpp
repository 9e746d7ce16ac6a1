// Asks the engine what it would allocate, with allocation switched off.
//
//   checker [--cuda COUNT:COMPUTE_CAPABILITY] --cpu LIBRARY   requests on standard input, answers on standard output
//   checker --architectures                                   the architectures that this build knows, one per line
//
// A request is one line of key=value pairs between tabs, an answer one line of JSON. A model stays loaded for the
// requests that follow it with the same loading options. Every context is made in a child process, so an engine that
// aborts costs one answer.
#include "llama.h"

#include "llama-arch.h"
#include "llama-context.h"
#include "llama-ext.h"
#include "llama-kv-cache-dsv4.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-memory-recurrent.h"
#include "llama-model.h"

#include "ggml-alloc.h"
#include "ggml-backend-impl.h"
#include "ggml-impl.h"

#include "scheduler.inc"
#include "standin.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace {

using request = std::map<std::string, std::string>;

std::string text(const request & r, const char * key, const char * otherwise) {
    const auto found = r.find(key);
    return found == r.end() ? otherwise : found->second;
}

uint32_t number(const request & r, const char * key, uint32_t otherwise) {
    const auto found = r.find(key);
    return found == r.end() ? otherwise : uint32_t(std::stoul(found->second));
}

bool flag(const request & r, const char * key, bool otherwise) {
    return text(r, key, otherwise ? "true" : "false") == "true";
}

request parse(const std::string & line) {
    request r;
    std::stringstream fields(line);
    for (std::string field; std::getline(fields, field, '\t');) {
        const size_t at = field.find('=');
        if (at != std::string::npos) {
            r[field.substr(0, at)] = field.substr(at + 1);
        }
    }
    return r;
}

// ---- answers

std::string quoted(const std::string & text) {
    std::string out = "\"";
    for (const unsigned char c : text) {
        if (c == '"' || c == '\\') {
            out += '\\';
            out += char(c);
        } else if (c < 0x20) {
            out += ' ';
        } else {
            out += char(c);
        }
    }
    return out + '"';
}

std::string object(const std::map<std::string, uint64_t> & numbers) {
    std::string out = "{";
    for (const auto & [name, value] : numbers) {
        out += (out.size() > 1 ? "," : "") + quoted(name) + ":" + std::to_string(value);
    }
    return out + "}";
}

// The engine's last complaints: its reason for a refusal.
std::string complaints;

void listen(ggml_log_level level, const char * line, void *) {
    if (level == GGML_LOG_LEVEL_WARN || level == GGML_LOG_LEVEL_ERROR) {
        complaints += line;
    }
    if (complaints.size() > 4000) {
        complaints.erase(0, complaints.size() - 2000);
    }
}

void refuse(const request & r, const char * what) {
    printf("{\"id\":%s,\"error\":%s,\"why\":%s}\n", text(r, "id", "0").c_str(), quoted(what).c_str(), quoted(complaints).c_str());
}

using clock_type = std::chrono::steady_clock;

uint64_t microseconds_since(clock_type::time_point start) {
    return uint64_t(std::chrono::duration_cast<std::chrono::microseconds>(clock_type::now() - start).count());
}

// ---- models

struct loaded {
    std::string   options;
    llama_model * model = nullptr;
    uint64_t      microseconds = 0;
    std::vector<std::string>                       patterns;
    std::vector<llama_model_tensor_buft_override>  overrides;
    std::vector<float>                             split;
} current;

llama_model * load(const request & r) {
    std::string options;
    for (const char * key : {"model", "gpu_layers", "repack", "mmap", "mtp", "cpu_moe", "n_cpu_moe", "tensor_split", "override"}) {
        options += text(r, key, "") + '\t';
    }
    if (current.model != nullptr && current.options == options) {
        return current.model;
    }
    if (current.model != nullptr) {
        llama_model_free(current.model);
    }
    current = {};
    current.options = options;
    llama_model_params params = llama_model_default_params();
    params.no_alloc        = true;
    params.load_mode       = flag(r, "mmap", false) ? LLAMA_LOAD_MODE_MMAP : LLAMA_LOAD_MODE_NONE;
    params.n_gpu_layers    = std::stoi(text(r, "gpu_layers", "-1"));
    params.use_extra_bufts = flag(r, "repack", true);
    params.load_mtp        = flag(r, "mtp", false);
    params.progress_callback = [](float, void *) { return true; };
    if (!text(r, "override", "").empty()) {
        current.patterns.push_back(text(r, "override", ""));
    }
    const char * experts = "\\.ffn_(up|down|gate|gate_up)_(ch|)exps";
    if (flag(r, "cpu_moe", false)) {
        current.patterns.push_back(experts);
    }
    for (uint32_t layer = 0; layer < number(r, "n_cpu_moe", 0); layer++) {
        current.patterns.push_back("blk\\." + std::to_string(layer) + experts);
    }
    for (const std::string & pattern : current.patterns) {
        current.overrides.push_back({pattern.c_str(), ggml_backend_cpu_buffer_type()});
    }
    if (!current.overrides.empty()) {
        current.overrides.push_back({nullptr, nullptr});
        params.tensor_buft_overrides = current.overrides.data();
    }
    std::stringstream shares(text(r, "tensor_split", ""));
    for (std::string share; std::getline(shares, share, ',');) {
        current.split.push_back(std::stof(share));
    }
    if (!current.split.empty()) {
        current.split.resize(llama_max_devices(), 0.0f);
        params.tensor_split = current.split.data();
    }
    const auto start = clock_type::now();
    current.model = llama_model_load_from_file(text(r, "model", "").c_str(), params);
    current.microseconds = microseconds_since(start);
    return current.model;
}

// ---- contexts

ggml_type type_named(const std::string & name) {
    for (int i = 0; i < GGML_TYPE_COUNT; i++) {
        const char * known = ggml_type_name(ggml_type(i));
        if (known != nullptr && name == known) {
            return ggml_type(i);
        }
    }
    fprintf(stderr, "unknown cache type %s\n", name.c_str());
    _exit(3);
}

llama_context_params context_params(const request & r) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx       = number(r, "context", 4096);
    params.n_batch     = number(r, "batch", 2048);
    params.n_ubatch    = number(r, "ubatch", 512);
    params.n_seq_max   = number(r, "sequences", 1);
    params.kv_unified  = flag(r, "unified", false);
    params.swa_full    = flag(r, "swa_full", false);
    params.offload_kqv = flag(r, "kv_offload", true);
    params.op_offload  = flag(r, "op_offload", true);
    params.type_k      = type_named(text(r, "key_type", "f16"));
    params.type_v      = type_named(text(r, "value_type", "f16"));
    const std::string flash = text(r, "flash", "auto");
    params.flash_attn_type = flash == "on"  ? LLAMA_FLASH_ATTN_TYPE_ENABLED
                           : flash == "off" ? LLAMA_FLASH_ATTN_TYPE_DISABLED
                                            : LLAMA_FLASH_ATTN_TYPE_AUTO;
    // The server keeps one row of logits per sequence, and one more per drafted token.
    const uint32_t rows = params.n_seq_max * (1 + number(r, "draft", 0));
    params.n_outputs_max = std::max(1u, std::min(params.n_batch, rows));
    params.n_threads = params.n_threads_batch = 4;
    params.no_perf = true;
    return params;
}

using bytes_by_buffer = std::map<std::string, uint64_t>;

template <typename Breakdown>
void add(bytes_by_buffer & sum, const Breakdown & breakdown) {
    for (const auto & [type, bytes] : breakdown) {
        sum[ggml_backend_buft_name(type)] += bytes;
    }
}

// Recurrent and compressor state; the rest of a context is caches.
void add_state(bytes_by_buffer & sum, const llama_memory_i * memory) {
    if (const auto * recurrent = dynamic_cast<const llama_memory_recurrent *>(memory)) {
        add(sum, recurrent->memory_breakdown());
    } else if (const auto * hybrid = dynamic_cast<const llama_memory_hybrid *>(memory)) {
        add_state(sum, hybrid->get_mem_recr());
    } else if (const auto * windowed = dynamic_cast<const llama_memory_hybrid_iswa *>(memory)) {
        add_state(sum, windowed->get_mem_recr());
    } else if (const auto * compressed = dynamic_cast<const llama_kv_cache_dsv4 *>(memory)) {
        for (const auto * state : {compressed->csa_state.get(), compressed->hca_state.get(), compressed->lid_state.get()}) {
            if (state != nullptr) {
                add(sum, state->memory_breakdown());
            }
        }
    }
}

// The compute buffers of an engine that really allocates. Its scheduler then keeps the devices that were pinned while
// the graph was built, and its buffers grow to the largest of three graphs; the projection looks at the first graph
// and forgets the pins (llama-context.cpp:sched_reserve, ggml-backend.cpp:ggml_backend_sched_reserve_size).
bytes_by_buffer compute_when_allocating(llama_context * context) {
    bytes_by_buffer most;
    const llama_cparams & params = context->cparams;
    const uint32_t sequences = params.n_seq_max;
    const uint32_t tokens    = std::min(params.n_ctx, params.n_ubatch);
    const uint32_t outputs   = std::min(tokens, params.n_outputs_max);
    const llm_arch arch      = context->model.arch;
    const bool one_sequence  = arch == LLM_ARCH_KIMI_LINEAR || arch == LLM_ARCH_MINIMAX_01;
    llama_memory_context_ptr memory;
    if (context->memory) {
        memory = context->memory->init_full();
    }
    const auto look = [&](uint32_t n_tokens, uint32_t n_seqs, uint32_t n_outputs) {
        if (context->graph_reserve(n_tokens, n_seqs, n_outputs, memory.get(), true) == nullptr) {
            return;
        }
        ggml_backend_sched * sched = context->sched.get();
        std::vector<size_t> sizes(sched->n_backends, 0);
        ggml_gallocr_reserve_n_size(sched->galloc, &sched->graph, sched->node_backend_ids, sched->leaf_backend_ids, sizes.data());
        for (int i = 0; i < sched->n_backends; i++) {
            uint64_t & size = most[ggml_backend_buft_name(sched->bufts[i])];
            size = std::max<uint64_t>(size, sizes[i]);
        }
    };
    look(tokens, sequences, outputs);
    look(sequences, sequences, sequences);
    look(tokens, one_sequence ? 1 : sequences, outputs);
    return most;
}

void answer(const request & r, llama_model * model) {
    complaints.clear();
    const auto start = clock_type::now();
    llama_context * context = llama_init_from_model(model, context_params(r));
    const uint64_t microseconds = microseconds_since(start);
    if (context == nullptr) {
        return refuse(r, "context");
    }
    bytes_by_buffer weights, memory, projected, state;
    for (const auto & [type, bytes] : llama_get_memory_breakdown(context)) {
        const char * name = ggml_backend_buft_name(type);
        weights[name]   += bytes.model;
        memory[name]    += bytes.context;
        projected[name] += bytes.compute;
    }
    add_state(state, context->memory.get());
    ggml_backend_buffer_t output = context->buf_output.get();
    const bytes_by_buffer outputs = {{ggml_backend_buffer_name(output), ggml_backend_buffer_get_size(output)}};
    const llama_cparams & resolved = context->cparams;
    const std::map<std::string, uint64_t> effective = {
        {"context", resolved.n_ctx},       {"context_per_sequence", resolved.n_ctx_seq}, {"sequences", resolved.n_seq_max},
        {"batch", resolved.n_batch},       {"ubatch", resolved.n_ubatch},                {"outputs", resolved.n_outputs_max},
        {"flash", resolved.flash_attn},    {"unified", resolved.kv_unified},
    };
    const bytes_by_buffer compute = compute_when_allocating(context);
    printf("{\"id\":%s,\"architecture\":%s,\"effective\":%s,\"weights\":%s,\"memory\":%s,\"state\":%s,\"output\":%s,\"compute\":%s,"
           "\"projected\":%s,\"load_us\":%llu,\"plan_us\":%llu}\n",
           text(r, "id", "0").c_str(), quoted(model->arch_name()).c_str(), object(effective).c_str(), object(weights).c_str(),
           object(memory).c_str(), object(state).c_str(), object(outputs).c_str(), object(compute).c_str(), object(projected).c_str(),
           (unsigned long long) current.microseconds, (unsigned long long) microseconds);
}

} // namespace

int main(int argc, char ** argv) {
    setenv("GGML_NO_BACKTRACE", "1", 0);
    int count = 0, capability = 0;
    for (int i = 1; i < argc; i++) {
        const std::string option = argv[i];
        if (option == "--architectures") {
            for (const llm_arch arch : llm_arch_all()) {
                puts(llm_arch_name(arch));
            }
            return 0;
        }
        if (option == "--cuda" && i + 1 < argc) {
            sscanf(argv[++i], "%d:%d", &count, &capability);
        } else if (option == "--cpu" && i + 1 < argc) {
            if (ggml_backend_load(argv[++i]) == nullptr) {
                fprintf(stderr, "%s cannot be loaded\n", argv[i]);
                return 2;
            }
        }
    }
    llama_log_set(listen, nullptr);
    if (count > 0) {
        standin_register(count, capability, size_t(1) << 50);
    }
    llama_backend_init();
    for (std::string line; std::getline(std::cin, line);) {
        const request r = parse(line);
        complaints.clear();
        fflush(stdout);
        llama_model * model = load(r);
        if (model == nullptr) {
            refuse(r, "model");
            fflush(stdout);
            continue;
        }
        const pid_t child = fork();
        if (child == 0) {
            answer(r, model);
            fflush(stdout);
            _exit(0);
        }
        int status = 0;
        waitpid(child, &status, 0);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
            refuse(r, "abort");
        }
        fflush(stdout);
    }
    fflush(stdout);
    _exit(0);
}
