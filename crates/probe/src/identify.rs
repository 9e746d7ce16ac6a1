//! From what a tool read to a device to plan for.

use plimsoll_math::deployment::Backend;
use plimsoll_math::device::{Device, Driver, Origin, Sourced, Vendor};
use plimsoll_math::units::Bytes;

use crate::Found;
use crate::facts::{Facts, Maker, Reading};
use crate::host::Host;
use crate::system::Os;

pub(crate) fn identify(facts: Facts, host: &Host, os: Os) -> Found {
    let known = facts.name.known().and_then(|name| in_catalogue(name, &facts));
    let in_catalogue = known.is_some();
    let device = match facts.maker {
        Maker::Apple => apple(known, &facts),
        _ => board(known, &facts, host, os),
    };
    Found { facts, device, in_catalogue }
}

/// The catalogue's device of that name; where several share it, the one with this much memory or this many cores.
fn in_catalogue(name: &str, facts: &Facts) -> Option<Device> {
    if let Some(cores) = facts.cores.known()
        && let Ok(device) = Device::named(&format!("{name} ({cores}c)"))
    {
        return Some(device);
    }
    let wanted = match facts.maker {
        Maker::Nvidia => Some(Vendor::Nvidia),
        Maker::Amd => Some(Vendor::Amd),
        Maker::Intel => Some(Vendor::Intel),
        Maker::Apple => Some(Vendor::Apple),
        Maker::Other => None,
    };
    let mut candidates = Device::candidates(name).ok()?;
    candidates.retain(|device| wanted.is_none_or(|vendor| device.vendor == vendor));
    let total = facts.total.known().copied();
    match candidates.as_slice() {
        [one] => Some(one.clone()),
        [] => None,
        several => {
            // Within a sixteenth: boards of one name differ by a factor in their memory, drivers by a few hundred MiB.
            let near = |device: &&Device| {
                total.is_some_and(|total| device.total.bytes.get().abs_diff(total) <= device.total.bytes.get() / 16)
            };
            let mut near = several.iter().filter(near);
            let first = near.next()?;
            near.next().is_none().then(|| first.clone())
        }
    }
}

fn apple(known: Option<Device>, facts: &Facts) -> Reading<Device> {
    let total = match &facts.total {
        Reading::Known(total) => *total,
        Reading::Unavailable(reason) => return Reading::unavailable(reason.clone()),
    };
    let Ok(total) = Bytes::new(total) else { return Reading::unavailable("its memory is beyond what can be counted") };
    let mut device = known.unwrap_or_else(|| Device::with_memory(total, Backend::Metal));
    if let Some(name) = facts.name.known()
        && device.speed.is_none()
    {
        device.name.clone_from(name);
    }
    let limit = facts.shared.known().and_then(|limit| Bytes::new(*limit).ok());
    Reading::Known(device.with_working_set(total, limit))
}

fn board(known: Option<Device>, facts: &Facts, host: &Host, os: Os) -> Reading<Device> {
    let unified = facts.unified.unwrap_or_else(|| known.as_ref().is_some_and(|device| device.unified));
    let host_memory = host.memory.known().and_then(|bytes| Bytes::new(*bytes).ok());
    let reported = facts.total.known().and_then(|bytes| Bytes::new(*bytes).ok());
    let source = format!("what {} reports", facts.source);
    if unified {
        return shared(known, facts, reported, host_memory);
    }
    let Some(total) = reported else {
        let Reading::Unavailable(reason) = &facts.total else {
            return Reading::unavailable("its memory is beyond what can be counted");
        };
        return Reading::unavailable(reason.clone());
    };
    let mut device = known.unwrap_or_else(|| unknown(facts, total));
    device = device.with_driver_total(total, &source, os == Os::Windows);
    if facts.displays.known() == Some(&true) {
        device = device.driving_displays();
    }
    Reading::Known(device)
}

/// A device that no catalogue knows: its memory alone.
fn unknown(facts: &Facts, total: Bytes) -> Device {
    let capability = facts.isa.known().and_then(|isa| isa.strip_prefix("sm_")).and_then(|digits| digits.parse::<u32>().ok());
    let compute_capability = capability.map_or(890, |version| version.saturating_mul(10));
    let mut device = Device::with_memory(total, Backend::Cuda { compute_capability });
    device.driver = match facts.maker {
        Maker::Nvidia => Driver::Cuda,
        Maker::Amd => Driver::Rocm,
        _ => Driver::Vulkan,
    };
    device.isa = facts.isa.known().cloned().unwrap_or_default();
    if let Some(name) = facts.name.known() {
        device.name.clone_from(name);
    }
    device
}

/// A device in the host's memory: what the driver lets it have of that.
fn shared(known: Option<Device>, facts: &Facts, reported: Option<Bytes>, host: Option<Bytes>) -> Reading<Device> {
    let Some(mut device) = known.or_else(|| host.map(|host| unknown(facts, host))) else {
        return Reading::unavailable("the size of the host's memory, which it shares, is not known");
    };
    let Some(host) = host else {
        return Reading::unavailable("the size of the host's memory, which it shares, is not known");
    };
    device.unified = true;
    let measured = |bytes: Bytes, origin: &str| Sourced { bytes, kind: Origin::Measured, origin: origin.to_owned() };
    let table = facts.shared.known().and_then(|bytes| Bytes::new(*bytes).ok());
    // A part of memory may be set aside for graphics; the system no longer counts it as its own.
    let aside = reported.filter(|_| device.driver == Driver::Rocm).unwrap_or(Bytes::ZERO);
    device.total = measured(host.plus(aside).unwrap_or(host), "the system's memory");
    device.usable = match (device.driver, table) {
        (Driver::Cuda, _) => measured(host, "the system's memory, which the CUDA runtime reports as the device's"),
        // The runtime hands out the larger of the two (a 4 GiB carve-out beside a 96 GiB table was reported as 98,304 MiB).
        (_, Some(table)) => measured(
            table.max(aside).min(device.total.bytes),
            "the graphics translation table, or what is set aside where that is more",
        ),
        (_, None) if aside > Bytes::ZERO => {
            let half = Bytes::new(host.get() / 2).unwrap_or(host);
            Sourced {
                bytes: half.max(aside),
                kind: Origin::Estimated,
                origin:
                    "half of memory, the default size of the graphics translation table, or what is set aside where that is more"
                        .to_owned(),
            }
        }
        (..) => Sourced { bytes: device.usable.bytes.min(host), ..device.usable.clone() },
    };
    Reading::Known(device)
}
