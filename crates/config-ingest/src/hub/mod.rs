//! Models by their name on a hub: `org/name[@revision][:quant or file]`.
//!
//! Reading the name needs nothing; reaching the hub is the feature `hub`. What is downloaded is small: file lists,
//! `config.json`, indexes, and the header ranges of weight files. Two caches are asked before the network:
//!
//! - the hub's own (`HF_HUB_CACHE`), where `refs` and `snapshots` hold whole files. It is only read: parts of files in
//!   it would look like broken downloads to the tools it belongs to.
//! - ours (`PLIMSOLL_CACHE`, else `plimsoll` in the user's cache folder), which holds by commit what we downloaded:
//!   small files whole, of large ones the first bytes. Each file appears at once, by renaming.

#[cfg(feature = "hub")]
mod cache;
#[cfg(feature = "hub")]
mod environment;
mod id;
#[cfg(feature = "hub")]
mod remote;

#[cfg(feature = "hub")]
pub use environment::Environment;
pub use id::{HubId, Select};
#[cfg(feature = "hub")]
pub use remote::{in_folder, open};
