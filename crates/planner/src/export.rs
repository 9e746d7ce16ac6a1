//! What was planned as something to run: a command line, a container's description, or another program's file.
//!
//! Every form carries the same arguments as the command line; a form that cannot say one of them is refused, naming it.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::deployment::{FlashAttention, SplitMode};
use plimsoll_math::device::Driver;
use plimsoll_math::format::StorageFormat;
use serde_json::{Map, Value, json};

use crate::command::command;
use crate::engine::{Planned, Question};
use crate::error::PlanError;
use crate::model::{Basis, Model};
use crate::request::{Engine, Options};

/// What to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A pod for Kubernetes, YAML.
    Kubernetes,
    /// A service for Docker Compose, YAML.
    Compose,
    /// A Modelfile for Ollama.
    Ollama,
    /// A command line for SGLang.
    Sglang,
}

impl Target {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Kubernetes, Self::Compose, Self::Ollama, Self::Sglang];

    /// The name, as users write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes",
            Self::Compose => "compose",
            Self::Ollama => "ollama",
            Self::Sglang => "sglang",
        }
    }
}

/// Where model files are mounted in containers.
const MODELS: &str = "/models";
/// The port that both servers are given.
const PORT: u64 = 8080;

/// The text of a target.
///
/// # Errors
/// [`PlanError::Request`] naming what the target cannot say.
pub fn document(model: &Model, options: &Options, target: Target) -> Result<String, PlanError> {
    let question = Question::new(model, options)?;
    let planned = question.plan()?;
    match target {
        Target::Kubernetes => Ok(yaml(&pod(&question, &planned)?)),
        Target::Compose => Ok(yaml(&compose(&question, &planned)?)),
        Target::Ollama => modelfile(&question, &planned),
        Target::Sglang => sglang(&question, &planned),
    }
}

fn refuse(target: Target, field: &str, why: &str) -> PlanError {
    PlanError::request("as", format!("{} with {field}", target.name()), why)
}

/// A container: image, arguments, and what it needs.
struct Container {
    image: String,
    arguments: Vec<String>,
    /// The Kubernetes resource and the number of devices, without for the processor alone.
    devices: Option<(&'static str, u64)>,
    driver: Driver,
    /// Bytes of the host's memory, for engines whose use of it is planned.
    memory: Option<u64>,
    health: &'static str,
    /// Whether ranks talk through shared memory.
    shares: bool,
}

fn container(question: &Question<'_>, planned: &Planned, target: Target) -> Result<Container, PlanError> {
    let engine = question.effective.engine;
    let driver = question.effective.device.driver;
    let devices = u64::try_from(question.effective.devices.len()).unwrap_or(1);
    let resource = match driver {
        Driver::Cuda => Some("nvidia.com/gpu"),
        Driver::Rocm => Some("amd.com/gpu"),
        Driver::Vulkan => Some("gpu.intel.com/xe"),
        Driver::Cpu => None,
        Driver::Metal => {
            return Err(refuse(target, "a Metal device", "a device that containers can be given: macOS gives them none"));
        }
    };
    if question.effective.devices.iter().any(|device| device.driver != driver) {
        return Err(refuse(target, "devices of several makers", "devices of one kind of driver"));
    }
    let mut arguments = command(question, planned);
    let (image, health) = match engine {
        Engine::LlamaCpp(_) => {
            let flavour = match driver {
                Driver::Cuda => "server-cuda",
                Driver::Rocm => "server-rocm",
                Driver::Vulkan => "server-vulkan",
                _ => "server",
            };
            // The image's entry point is the program.
            arguments.remove(0);
            mounted(&mut arguments);
            arguments.extend(["--host", "0.0.0.0", "--port"].map(ToString::to_string));
            arguments.push(PORT.to_string());
            (format!("ghcr.io/ggml-org/llama.cpp:{flavour}"), "/health")
        }
        Engine::Vllm => {
            // The image's entry point is `vllm serve`.
            arguments.drain(..2);
            arguments.extend(["--host", "0.0.0.0", "--port"].map(ToString::to_string));
            arguments.push(PORT.to_string());
            (format!("vllm/vllm-openai:v{}", engine.version()), "/health")
        }
        _ => return Err(refuse(target, &format!("engine {}", engine.name()), "an engine that serves: llama.cpp or vllm")),
    };
    Ok(Container {
        image,
        arguments,
        devices: resource.map(|resource| (resource, devices)),
        driver,
        memory: on_host(question, planned)?,
        health,
        shares: matches!(engine, Engine::Vllm) && devices > 1,
    })
}

/// The files below the folder that is mounted: the model's, and those of what runs beside it.
fn mounted(arguments: &mut [String]) {
    let named: Vec<usize> = arguments
        .iter()
        .enumerate()
        .filter(|(_, argument)| matches!(argument.as_str(), "-m" | "-md" | "--mmproj"))
        .map(|(place, _)| place + 1)
        .collect();
    for place in named {
        let Some(file) = arguments.get_mut(place) else { continue };
        let name = file.rsplit(['/', '\\']).next().unwrap_or_default().to_string();
        *file = format!("{MODELS}/{name}");
    }
}

/// What the engine takes of the host's memory, with the limits of what it may keep as it runs; `None` for servers in Python, of
/// which only devices are planned: a limit made up for them would end them.
fn on_host(question: &Question<'_>, planned: &Planned) -> Result<Option<u64>, PlanError> {
    if question.effective.engine.has_pool() {
        return Ok(None);
    }
    let mut bytes = planned.allocation.host.used()?.get();
    if question.effective.deployment.devices.is_empty() {
        for place in &planned.allocation.devices {
            bytes = bytes.saturating_add(place.used()?.get());
        }
    }
    for limit in crate::runtime::limits(question, planned)? {
        bytes = bytes.saturating_add(limit.bytes.get());
    }
    // The program itself, its libraries and buffers of requests.
    Ok(Some(bytes.saturating_add(2 << 30)))
}

/// A name as Kubernetes and Compose allow it (RFC 1123 label).
fn label(name: &str) -> String {
    let base = name.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let clean: String = base.chars().map(|character| if character.is_ascii_alphanumeric() { character } else { '-' }).collect();
    let clean = clean.trim_matches('-').chars().take(50).collect::<String>();
    let clean = clean.trim_end_matches('-');
    if clean.is_empty() { "model".to_string() } else { clean.to_string() }
}

const fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

fn pod(question: &Question<'_>, planned: &Planned) -> Result<Value, PlanError> {
    let container = container(question, planned, Target::Kubernetes)?;
    let name = label(&question.model.name);
    let (mut requests, mut limits) = (Map::new(), Map::new());
    if let Some(bytes) = container.memory {
        let memory = json!(format!("{}Mi", mib(bytes)));
        requests.insert("memory".to_string(), memory.clone());
        limits.insert("memory".to_string(), memory);
    }
    if let Some((resource, count)) = container.devices {
        // Devices are counted in limits; a request would have to be the same.
        limits.insert(resource.to_string(), json!(count));
    }
    let mut mounts = Vec::from([json!({"name": "models", "mountPath": MODELS})]);
    let mut volumes = Vec::from([json!({"name": "models", "persistentVolumeClaim": {"claimName": "models"}})]);
    let mut environment = Vec::new();
    if matches!(question.effective.engine, Engine::Vllm) {
        environment.push(json!({"name": "HF_HOME", "value": MODELS}));
    }
    if container.shares {
        mounts.push(json!({"name": "shared-memory", "mountPath": "/dev/shm"}));
        volumes.push(json!({"name": "shared-memory", "emptyDir": {"medium": "Memory"}}));
    }
    let mut main = json!({
        "name": "server",
        "image": container.image,
        "args": container.arguments,
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": {"limits": limits},
        "readinessProbe": {"httpGet": {"path": container.health, "port": "http"}, "periodSeconds": 10},
        // Loading takes minutes: the server is given an hour before it is taken for dead.
        "startupProbe": {"httpGet": {"path": container.health, "port": "http"}, "periodSeconds": 10, "failureThreshold": 360},
        "volumeMounts": mounts,
    });
    if let (false, Some(main)) = (environment.is_empty(), main.as_object_mut()) {
        main.insert("env".to_string(), Value::Array(environment));
    }
    if let (false, Some(resources)) = (requests.is_empty(), main.pointer_mut("/resources").and_then(Value::as_object_mut)) {
        resources.insert("requests".to_string(), Value::Object(requests));
    }
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": name}},
        "spec": {"containers": [main], "volumes": volumes},
    }))
}

fn compose(question: &Question<'_>, planned: &Planned) -> Result<Value, PlanError> {
    let container = container(question, planned, Target::Compose)?;
    let name = label(&question.model.name);
    let mut service = json!({
        "image": container.image,
        "command": container.arguments,
        "ports": [format!("{PORT}:{PORT}")],
        "volumes": [format!("./models:{MODELS}")],
        "restart": "unless-stopped",
    });
    let Some(fields) = service.as_object_mut() else { return Ok(service) };
    match (container.driver, container.devices) {
        (Driver::Cuda, Some((_, count))) => {
            let wanted = json!({"driver": "nvidia", "count": count, "capabilities": ["gpu"]});
            fields.insert("deploy".to_string(), json!({"resources": {"reservations": {"devices": [wanted]}}}));
        }
        (Driver::Rocm, Some(_)) => {
            fields.insert("devices".to_string(), json!(["/dev/kfd:/dev/kfd", "/dev/dri:/dev/dri"]));
            fields.insert("group_add".to_string(), json!(["video", "render"]));
        }
        (_, Some(_)) => {
            fields.insert("devices".to_string(), json!(["/dev/dri:/dev/dri"]));
        }
        (_, None) => {}
    }
    if matches!(question.effective.engine, Engine::Vllm) {
        fields.insert("environment".to_string(), json!({"HF_HOME": MODELS}));
    }
    if container.shares {
        fields.insert("ipc".to_string(), json!("host"));
    }
    Ok(json!({"services": {name: service}}))
}

/// A Modelfile. Ollama runs llama.cpp's library with options of its own (api/types.go: Options, Runner); what is set for the whole server is
/// set by its environment, in comments.
fn modelfile(question: &Question<'_>, planned: &Planned) -> Result<String, PlanError> {
    let deployment = &question.effective.deployment;
    if !matches!(question.effective.engine, Engine::LlamaCpp(_)) {
        let field = format!("engine {}", question.effective.engine.name());
        return Err(refuse(Target::Ollama, &field, "engine llama.cpp, which Ollama is made of"));
    }
    let cannot = [
        ("tensor_split", !deployment.tensor_split.is_empty()),
        ("split_mode", !matches!(deployment.split_mode, SplitMode::Layer)),
        ("cpu_moe", deployment.cpu_moe),
        ("n_cpu_moe", deployment.n_cpu_moe > 0),
        ("override_tensor", !deployment.tensor_overrides.is_empty()),
        ("kv_offload", !deployment.kv_offload && !deployment.devices.is_empty()),
        ("op_offload", !deployment.op_offload && !deployment.devices.is_empty()),
        ("kv_unified", deployment.kv_unified),
        ("swa_full", deployment.swa_full),
        ("kv_type_k beside another kv_type_v", deployment.kv_type_k != deployment.kv_type_v),
        ("draft_mtp", deployment.draft_context),
        ("mmproj", question.projector.is_some()),
    ];
    if let Some((field, _)) = cannot.iter().find(|(_, set)| *set) {
        return Err(refuse(Target::Ollama, field, "what a Modelfile can say: context, batch, layers, memory mapping"));
    }
    if question.model.basis != Basis::Gguf && question.quant.is_none() {
        return Err(refuse(Target::Ollama, "a checkpoint", "a GGUF file, or --quant for the one to make"));
    }
    let arguments = command(question, planned);
    let file = arguments.iter().position(|argument| argument == "-m").and_then(|place| arguments.get(place + 1));
    let mut lines = Vec::new();
    let mut environment = Vec::from([format!("OLLAMA_NUM_PARALLEL={}", deployment.sequences)]);
    if deployment.kv_type_k != StorageFormat::F16 {
        environment.push(format!("OLLAMA_KV_CACHE_TYPE={}", deployment.kv_type_k.name()));
    }
    match deployment.flash_attention {
        FlashAttention::On => environment.push("OLLAMA_FLASH_ATTENTION=1".to_string()),
        FlashAttention::Off => environment.push("OLLAMA_FLASH_ATTENTION=0".to_string()),
        FlashAttention::Auto => {}
    }
    lines.push(format!("# The server's environment: {}", environment.join(" ")));
    let file = file.map_or("model.gguf", String::as_str);
    lines.push(if file.contains('/') { format!("FROM {file}") } else { format!("FROM ./{file}") });
    let mut parameter = |name: &str, value: String| lines.push(format!("PARAMETER {name} {value}"));
    parameter("num_ctx", planned.resolved.context_per_sequence.to_string());
    parameter("num_batch", planned.resolved.ubatch.to_string());
    let layers = u64::try_from(question.converted().layers.len()).unwrap_or(0) + 1;
    let on_devices = if deployment.devices.is_empty() { 0 } else { deployment.gpu_layers.unwrap_or(layers).min(layers) };
    parameter("num_gpu", on_devices.to_string());
    if !deployment.mmap {
        parameter("use_mmap", "false".to_string());
    }
    lines.push(String::new());
    Ok(lines.join("\n"))
}

/// SGLang's server (python/sglang/srt/server_args.py).
fn sglang(question: &Question<'_>, planned: &Planned) -> Result<String, PlanError> {
    if !matches!(question.effective.engine, Engine::Vllm) {
        let field = format!("engine {}", question.effective.engine.name());
        return Err(refuse(Target::Sglang, &field, "engine vllm, whose checkpoints and ranks it shares"));
    }
    let Some(answer) = &planned.vllm else { return Err(refuse(Target::Sglang, "no plan", "a plan")) };
    let brief = &answer.brief;
    if brief.context_parallel > 1 {
        return Err(refuse(Target::Sglang, "context_parallel", "1"));
    }
    let model = question.model.reference.clone().unwrap_or_else(|| question.model.name.clone());
    let mut out: Vec<String> = ["python", "-m", "sglang.launch_server", "--model-path"].map(ToString::to_string).to_vec();
    out.push(model);
    let mut option = |name: &str, value: u64| {
        out.push(name.to_string());
        out.push(value.to_string());
    };
    option("--context-length", planned.resolved.context_per_sequence);
    option("--tp-size", brief.tensor_parallel);
    if brief.pipeline_parallel > 1 {
        option("--pp-size", brief.pipeline_parallel);
    }
    if brief.data_parallel > 1 {
        option("--dp-size", brief.data_parallel);
    }
    if brief.expert_parallel {
        option("--ep-size", brief.tensor_parallel);
    }
    option("--max-running-requests", brief.max_sequences);
    option("--chunked-prefill-size", brief.max_batched_tokens);
    match planned.resolved.total_context {
        0 => {}
        tokens => option("--max-total-tokens", tokens),
    }
    let cache = question.options.kv_type.as_deref().unwrap_or("auto");
    let cache = match cache {
        "auto" => "auto",
        "fp8" | "fp8_e4m3" => "fp8_e4m3",
        "fp8_e5m2" => "fp8_e5m2",
        other => return Err(refuse(Target::Sglang, &format!("kv_type {other}"), "auto, fp8_e4m3 or fp8_e5m2")),
    };
    out.extend(["--kv-cache-dtype", cache].map(ToString::to_string));
    if !brief.prefix_caching {
        out.push("--disable-radix-cache".to_string());
    }
    Ok(format!("{}\n", out.join(" ")))
}

/// YAML in block style; texts are in JSON's quotes, which YAML takes as they are.
fn yaml(value: &Value) -> String {
    let mut out = String::new();
    block(value, 0, &mut out);
    out
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Array(list) if list.is_empty() => Some("[]".to_string()),
        Value::Object(map) if map.is_empty() => Some("{}".to_string()),
        Value::Array(_) | Value::Object(_) => None,
        other => Some(other.to_string()),
    }
}

fn block(value: &Value, indent: usize, out: &mut String) {
    let margin = " ".repeat(indent);
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let plain = key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte));
                let key = if plain { key.clone() } else { Value::from(key.as_str()).to_string() };
                match scalar(value) {
                    Some(text) => out.push_str(&format!("{margin}{key}: {text}\n")),
                    None => {
                        out.push_str(&format!("{margin}{key}:\n"));
                        block(value, indent + 2, out);
                    }
                }
            }
        }
        Value::Array(list) => {
            for value in list {
                match scalar(value) {
                    Some(text) => out.push_str(&format!("{margin}- {text}\n")),
                    None => {
                        let mut inner = String::new();
                        block(value, indent + 2, &mut inner);
                        // The first line stands beside the dash.
                        out.push_str(&format!("{margin}- {}", inner.trim_start()));
                    }
                }
            }
        }
        other => out.push_str(&format!("{margin}{other}\n")),
    }
}
