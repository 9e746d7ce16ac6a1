// Devices that plan like a GPU and never compute.
#pragma once

#include "ggml-backend.h"

#include <cstddef>

// Registers `count` devices of one compute capability (890 for 8.9) and memory size. Call it once, before any model is loaded.
void standin_register(int count, int compute_capability, size_t memory);
