// Stand-in CUDA devices. What a real one answers while a graph is planned (which operations it supports, how many bytes a
// tensor takes there, which operations it wants to take over) comes from the engine's own functions: cut from its source
// tree when the checker is built (xtask/src/conformance/cut.rs) and included below. Memory is address space only.
#include "standin.h"

#include "ggml-backend-impl.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"
#include "ggml.h"

#define GGML_COMMON_DECL_CPP
#include "ggml-common.h"

#include <sys/mman.h>

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

// What the cut functions expect to find around them in the CUDA backend.
#define __host__
#define __device__
#define GGML_CUDA_USE_CUB
#define FLASH_ATTN_AVAILABLE
#ifndef GGML_UNUSED_VARS
#define GGML_UNUSED_VARS(...)
#endif

namespace {

struct device_facts {
    int    cc;
    bool   integrated;
    size_t smpb;
    int    nsm;
};
struct all_devices {
    device_facts devices[16];
};
all_devices facts;

const all_devices & ggml_cuda_info() {
    return facts;
}

// Release builds carry code for the generation of the device, compiled or as PTX.
int ggml_cuda_highest_compiled_arch(int cc) {
    return cc;
}

struct ggml_backend_cuda_device_context {
    int         device;
    int         op_offload_min_batch_size;
    std::string name;
    std::string description;
    size_t      memory;
};

struct ggml_backend_cuda_buffer_type_context {
    int         device;
    std::string name;
};

bool ggml_backend_buft_is_cuda(ggml_backend_buffer_type_t buft);
bool ggml_backend_buft_is_cuda_host(ggml_backend_buffer_type_t buft);

// The vector kernels of a default build: keys and values in the same one of four formats.
using fattn_vec_case_t = void (*)();
void some_kernel() {}

fattn_vec_case_t ggml_cuda_get_fattn_vec_case(int64_t head_size, ggml_type keys, ggml_type values) {
    const auto stored = [](ggml_type type) { return type == GGML_TYPE_F32 ? GGML_TYPE_F16 : type; };
    const bool size_built   = head_size == 64 || head_size == 128 || head_size == 256;
    const ggml_type type    = stored(keys);
    const bool format_built = type == GGML_TYPE_F16 || type == GGML_TYPE_BF16 || type == GGML_TYPE_Q4_0 || type == GGML_TYPE_Q8_0;
    return size_built && format_built && type == stored(values) ? some_kernel : nullptr;
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#include "cuda_planning.inc"
#pragma GCC diagnostic pop

ggml_backend_cuda_device_context * context_of(ggml_backend_dev_t device) {
    return static_cast<ggml_backend_cuda_device_context *>(device->context);
}

// ---- buffers: address space that is never backed

struct reserved {
    void * base;
    size_t size;
};

reserved * reserved_of(ggml_backend_buffer_t buffer) {
    return static_cast<reserved *>(buffer->context);
}

ggml_backend_buffer_t reserve(ggml_backend_buffer_type_t type, size_t size) {
    const size_t length = std::max<size_t>(size, 4096);
    void * base = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        return nullptr;
    }
    ggml_backend_buffer_i iface = {};
    iface.free_buffer = [](ggml_backend_buffer_t buffer) {
        munmap(reserved_of(buffer)->base, reserved_of(buffer)->size);
        delete reserved_of(buffer);
    };
    iface.get_base      = [](ggml_backend_buffer_t buffer) { return reserved_of(buffer)->base; };
    iface.memset_tensor = [](ggml_backend_buffer_t, ggml_tensor *, uint8_t, size_t, size_t) {};
    iface.set_tensor    = [](ggml_backend_buffer_t, ggml_tensor *, const void *, size_t, size_t) {};
    iface.get_tensor    = [](ggml_backend_buffer_t, const ggml_tensor *, void * to, size_t, size_t n) { memset(to, 0, n); };
    iface.clear         = [](ggml_backend_buffer_t, uint8_t) {};
    return ggml_backend_buffer_init(type, iface, new reserved{base, length}, size);
}

const char * type_name(ggml_backend_buffer_type_t type) {
    return static_cast<ggml_backend_cuda_buffer_type_context *>(type->context)->name.c_str();
}

const char * host_type_name(ggml_backend_buffer_type_t) {
    return "CUDA_Host";
}

bool ggml_backend_buft_is_cuda(ggml_backend_buffer_type_t buft) {
    return buft->iface.get_name == type_name;
}

bool ggml_backend_buft_is_cuda_host(ggml_backend_buffer_type_t buft) {
    return buft->iface.get_name == host_type_name;
}

// One of everything for each device; a deque because the engine keeps pointers.
struct standin {
    ggml_backend_cuda_device_context      context;
    ggml_backend_cuda_buffer_type_context type_context;
    ggml_backend_buffer_type              type = {};
    ggml_backend_device                   device = {};
};
std::deque<standin>      standins;
ggml_backend_reg         registry  = {};
ggml_backend_buffer_type host_type = {};

ggml_backend_t new_backend(ggml_backend_dev_t device, const char *) {
    static ggml_guid guid = {0x70, 0x6c, 0x69, 0x6d, 0x73, 0x6f, 0x6c, 0x6c, 0x2d, 0x73, 0x74, 0x61, 0x6e, 0x64, 0x69, 0x6e};
    auto * backend = new ggml_backend{};
    backend->guid    = &guid;
    backend->device  = device;
    backend->context = device->context;
    backend->iface.get_name      = [](ggml_backend_t b) { return context_of(b->device)->name.c_str(); };
    backend->iface.free          = [](ggml_backend_t b) { delete b; };
    backend->iface.synchronize   = [](ggml_backend_t) {};
    backend->iface.graph_compute = [](ggml_backend_t, ggml_cgraph *) { return GGML_STATUS_FAILED; };
    backend->iface.event_record  = [](ggml_backend_t, ggml_backend_event_t) {};
    backend->iface.event_wait    = [](ggml_backend_t, ggml_backend_event_t) {};
    return backend;
}

void describe_device(ggml_backend_device_i & iface) {
    iface.get_name        = [](ggml_backend_dev_t device) { return context_of(device)->name.c_str(); };
    iface.get_description = [](ggml_backend_dev_t device) { return context_of(device)->description.c_str(); };
    iface.get_memory      = [](ggml_backend_dev_t device, size_t * free, size_t * total) { *free = *total = context_of(device)->memory; };
    iface.get_type        = [](ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; };
    iface.get_props       = [](ggml_backend_dev_t device, ggml_backend_dev_props * props) {
        *props = {};
        props->name         = context_of(device)->name.c_str();
        props->description  = context_of(device)->description.c_str();
        props->type         = GGML_BACKEND_DEVICE_TYPE_GPU;
        props->memory_free  = props->memory_total = context_of(device)->memory;
        props->caps.async   = props->caps.host_buffer = props->caps.events = true;
        props->caps.mmap_support = true;
    };
    iface.init_backend         = new_backend;
    iface.get_buffer_type      = [](ggml_backend_dev_t device) { return &standins.at(context_of(device)->device).type; };
    iface.get_host_buffer_type = [](ggml_backend_dev_t) { return &host_type; };
    iface.supports_op          = ggml_backend_cuda_device_supports_op;
    iface.supports_buft        = [](ggml_backend_dev_t device, ggml_backend_buffer_type_t type) {
        return ggml_backend_buft_is_cuda(type) && type->device == device;
    };
    iface.offload_op = [](ggml_backend_dev_t device, const ggml_tensor * op) {
        return get_op_batch_size(op) >= context_of(device)->op_offload_min_batch_size;
    };
    iface.event_new         = [](ggml_backend_dev_t device) { return new ggml_backend_event{device, nullptr}; };
    iface.event_free        = [](ggml_backend_dev_t, ggml_backend_event_t event) { delete event; };
    iface.event_synchronize = [](ggml_backend_dev_t, ggml_backend_event_t) {};
}

} // namespace

void standin_register(int count, int compute_capability, size_t memory) {
    for (int i = 0; i < count; i++) {
        facts.devices[i] = {compute_capability, false, 48 * 1024, 128};
        const std::string name = "CUDA" + std::to_string(i);
        standin & one = standins.emplace_back();
        one.context         = {i, 32, name, "stand-in", memory};
        one.type_context    = {i, name};
        one.type.context    = &one.type_context;
        one.type.device     = &one.device;
        one.type.iface.get_name       = type_name;
        one.type.iface.alloc_buffer   = reserve;
        one.type.iface.get_alignment  = [](ggml_backend_buffer_type_t) -> size_t { return 128; };
        one.type.iface.get_alloc_size = ggml_backend_cuda_buffer_type_get_alloc_size;
        one.device.reg      = &registry;
        one.device.context  = &one.context;
        describe_device(one.device.iface);
    }
    host_type.iface  = ggml_backend_cpu_buffer_type()->iface;
    host_type.device = &standins.front().device;
    host_type.iface.get_name     = host_type_name;
    host_type.iface.alloc_buffer = [](ggml_backend_buffer_type_t type, size_t size) {
        ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size);
        if (buffer != nullptr) {
            buffer->buft = type;
        }
        return buffer;
    };
    registry.api_version            = GGML_BACKEND_API_VERSION;
    registry.iface.get_name         = [](ggml_backend_reg_t) { return "CUDA"; };
    registry.iface.get_device_count = [](ggml_backend_reg_t) { return standins.size(); };
    registry.iface.get_device       = [](ggml_backend_reg_t, size_t index) { return &standins.at(index).device; };
    registry.iface.get_proc_address = [](ggml_backend_reg_t, const char *) -> void * { return nullptr; };
    ggml_backend_register(&registry);
}
