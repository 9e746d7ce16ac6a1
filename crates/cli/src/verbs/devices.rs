//! `plimsoll devices`: the catalogue, described devices, or this machine's own.

use plimsoll::math::device::Device;
use plimsoll::planner::PlanError;
use plimsoll::planner::response::DeviceBrief;
use plimsoll::planner::wire::device_list;

use crate::args::DevicesArgs;
use crate::{places, print, render, show};

pub(crate) fn run(arguments: &DevicesArgs) -> Result<(), PlanError> {
    if arguments.local {
        let machine = plimsoll_probe::this_machine();
        if arguments.csv {
            print(&render::local_csv(&machine));
            return Ok(());
        }
        return show(arguments.json, &machine, render::local);
    }
    let mut list = device_list()?;
    if let Some(path) = &arguments.devices_file {
        let described = places::read(path)?.into_iter().map(|device| DeviceBrief { aliases: Vec::new(), device });
        list.devices.splice(0..0, described);
    }
    if !arguments.names.is_empty() {
        list.devices = matching(list.devices, &arguments.names.join(" "))?;
    }
    if arguments.csv {
        print(&render::devices_csv(&list));
        return Ok(());
    }
    show(arguments.json, &list, render::devices)
}

/// Devices that are called so: all whose names hold every word, or else the one that a forgiving reading finds.
fn matching(devices: Vec<DeviceBrief>, text: &str) -> Result<Vec<DeviceBrief>, PlanError> {
    let plain = |text: &str| text.to_lowercase().replace(['-', '_'], " ");
    let wanted = plain(text);
    let called_so = |brief: &DeviceBrief| {
        let mut names = brief.aliases.iter().chain([&brief.device.name]).map(|name| plain(name));
        names.any(|name| wanted.split_whitespace().all(|word| name.contains(word)))
    };
    if devices.iter().any(called_so) {
        return Ok(devices.into_iter().filter(called_so).collect());
    }
    let device = Device::named(text)?;
    Ok(vec![DeviceBrief { aliases: device.aliases().iter().map(ToString::to_string).collect(), device }])
}
