//! `plimsoll devices`: the catalogue, described devices, or this machine's own.

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
    if arguments.csv {
        print(&render::devices_csv(&list));
        return Ok(());
    }
    show(arguments.json, &list, render::devices)
}
