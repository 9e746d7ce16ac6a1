//! Devices beyond the catalogue: described in a file or by options, or this machine's own.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use plimsoll::ingest::error::IngestError;
use plimsoll::math::device::Device;
use plimsoll::planner::custom::CustomDevice;
use plimsoll::planner::{Options, PlanError};
use plimsoll_probe::Local;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The most that is read of a file that describes things, bytes.
const MAX_FILE: u64 = 16 << 20;
/// The most devices that a file may describe.
const MAX_DESCRIBED: usize = 10_000;

/// A file that describes devices.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Described {
    device: Vec<CustomDevice>,
}

/// A TOML file, or a JSON file by its name.
pub(crate) fn load<T: DeserializeOwned>(path: &Path) -> Result<T, PlanError> {
    let name = path.display().to_string();
    let unavailable = |why: String| PlanError::Source(IngestError::Unavailable { what: name.clone(), why });
    let file = File::open(path).map_err(|error| unavailable(error.to_string()))?;
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|error| unavailable(error.to_string()))?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > MAX_FILE {
        return Err(unavailable(format!("it is larger than {MAX_FILE} bytes")));
    }
    let wrong = |found: String| {
        PlanError::Source(IngestError::Field { place: name.clone(), found, expected: "what `--help` describes".to_owned() })
    };
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json")) {
        return serde_json::from_str(&text).map_err(|error| wrong(error.to_string()));
    }
    toml::from_str(&text).map_err(|error| wrong(error.to_string().replace('\n', " ")))
}

/// The devices that a file describes.
pub(crate) fn read(path: &Path) -> Result<Vec<Device>, PlanError> {
    let described: Described = load(path)?;
    let place = |index: usize| format!("{}, device {}", path.display(), index + 1);
    if described.device.is_empty() || described.device.len() > MAX_DESCRIBED {
        return Err(PlanError::Source(IngestError::Field {
            place: path.display().to_string(),
            found: format!("{} devices", described.device.len()),
            expected: format!("1 to {MAX_DESCRIBED} sections [[device]]"),
        }));
    }
    let mut devices: Vec<Device> = Vec::new();
    for (index, one) in described.device.iter().enumerate() {
        let at = |error: PlanError| {
            let (found, expected) = match error {
                PlanError::Request { field, found, expected } => (format!("{field} {found}"), expected),
                other => (other.to_string(), "a device".to_owned()),
            };
            PlanError::Source(IngestError::Field { place: place(index), found, expected })
        };
        let device = one.device().map_err(at)?;
        if devices.iter().any(|there| there.name.eq_ignore_ascii_case(&device.name)) {
            return Err(at(PlanError::request("name", &device.name, "a name that no other device of the file has")));
        }
        devices.push(device);
    }
    Ok(devices)
}

/// This machine's devices under names of their own.
fn local(machine: &Local) -> Vec<Device> {
    let mut devices: Vec<Device> = Vec::new();
    for device in machine.devices.iter().filter_map(|found| found.device.known()) {
        let mut device = device.clone();
        let alike =
            devices.iter().filter(|there| there.name == device.name || there.name.starts_with(&format!("{} #", device.name)));
        let count = alike.count();
        if count > 0 {
            device.name = format!("{} #{}", device.name, count + 1);
        }
        devices.push(device);
    }
    devices
}

/// Puts described devices and this machine's own in the place of their names.
pub(crate) fn describe(options: &mut Options, file: Option<&Path>, changes: &CustomDevice) -> Result<(), PlanError> {
    let mut known: Vec<Device> = file.map(read).transpose()?.unwrap_or_default();
    let mut names: Vec<String> = options.device.iter().chain(options.devices.iter().flatten()).cloned().collect();
    let is = |name: &String, word: &str| name.eq_ignore_ascii_case(word);
    if let Some(place) = names.iter().position(|name| is(name, "local")) {
        let machine = plimsoll_probe::this_machine();
        let own = local(&machine);
        if own.is_empty() {
            // Nothing but the processor.
            if let Some(name) = names.get_mut(place) {
                "cpu".clone_into(name);
            }
        } else {
            names.splice(place..=place, own.iter().map(|device| device.name.clone()));
            known.extend(own);
        }
    }
    // `cpu` without a size means this machine's memory.
    if options.memory.is_none() && names.iter().any(|name| is(name, "cpu")) {
        let host = plimsoll_probe::host();
        options.memory = host.memory.known().copied();
        // llama.cpp starts a thread for each core; other engines know no such option.
        if options.threads.is_none() && options.engine.as_deref().is_none_or(|engine| engine.starts_with("llama.cpp")) {
            options.threads = host.cores.known().and_then(|cores| u64::try_from(*cores).ok());
        }
    }
    let speeds = CustomDevice { memory: None, ..changes.clone() };
    if speeds != CustomDevice::default() {
        let described = match names.first() {
            Some(name) => {
                let (count, name) = Device::count_of(name)?;
                if names.len() > 1 {
                    return Err(PlanError::request("device", "several devices", "one kind: a file describes several"));
                }
                let mut device = match known.iter().find(|there| there.name.eq_ignore_ascii_case(name)) {
                    Some(there) => changes.applied_to(there.clone())?,
                    None => CustomDevice { like: Some(name.to_owned()), ..changes.clone() }.device()?,
                };
                device.name = format!("{}, as described", device.name.trim_end_matches(", as described"));
                names = vec![if count > 1 { format!("{} x{count}", device.name) } else { device.name.clone() }];
                device
            }
            None => {
                let device = changes.device()?;
                names = vec![device.name.clone()];
                device
            }
        };
        known.insert(0, described);
    }
    let mut names = names.into_iter();
    options.device = names.next();
    let more: Vec<String> = names.collect();
    options.devices = (!more.is_empty()).then_some(more);
    options.custom_devices = (!known.is_empty()).then_some(known);
    Ok(())
}
