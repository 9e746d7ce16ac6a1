//! The bare problem: bins, candidates that take from them, and how many of each are wanted. No model, engine or device in it.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

/// Something that is used up: a device's memory, or a host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bin {
    /// For messages.
    pub name: String,
    /// Bytes it holds.
    pub capacity: u64,
    /// Whether it counts for the bound: devices do, a host's memory behind them does not.
    pub counts: bool,
}

/// One way to place a replica of one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The model.
    pub model: usize,
    /// The host.
    pub host: usize,
    /// What it takes of which bin.
    pub uses: Vec<(usize, u64)>,
    /// Which demand this is, for whoever made the problem.
    pub demand: usize,
    /// The first device of its block, on its host.
    pub first: usize,
}

/// How much of a model is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Replicas.
    pub replicas: u64,
    /// What each is worth.
    pub worth: u64,
    /// Whether no two may share a host.
    pub spread: bool,
    /// Models that it may not share a host with, in both directions.
    pub apart: Vec<usize>,
}

/// The problem.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Problem {
    /// What is used up.
    pub bins: Vec<Bin>,
    /// Ways to place, by model.
    pub candidates: Vec<Candidate>,
    /// What is wanted, by model.
    pub wanted: Vec<Wanted>,
    /// How many hosts there are.
    pub hosts: usize,
}

impl Problem {
    /// The candidates of a model, with their numbers.
    pub fn of(&self, model: usize) -> impl Iterator<Item = (usize, &Candidate)> {
        self.candidates.iter().enumerate().filter(move |(_, candidate)| candidate.model == model)
    }

    /// Whether `model` may not come to `host`, for what is there already.
    #[must_use]
    pub fn keeps_away(&self, model: usize, host: usize, counts: &[u64]) -> bool {
        let on = |of: usize| {
            let mut there = self.candidates.iter().zip(counts).filter(|(candidate, count)| candidate.host == host && **count > 0);
            there.any(|(candidate, _)| candidate.model == of)
        };
        self.wanted.get(model).is_some_and(|wanted| wanted.spread && on(model) || wanted.apart.iter().any(|other| on(*other)))
    }

    /// What a placement is worth.
    #[must_use]
    pub fn value(&self, counts: &[u64]) -> u64 {
        let worth = |model: usize| self.wanted.get(model).map_or(0, |wanted| wanted.worth);
        self.candidates
            .iter()
            .zip(counts)
            .fold(0_u64, |sum, (candidate, count)| sum.saturating_add(worth(candidate.model).saturating_mul(*count)))
    }

    /// Bytes left in every bin.
    #[must_use]
    pub fn left(&self, counts: &[u64]) -> Vec<u64> {
        let mut left: Vec<u64> = self.bins.iter().map(|bin| bin.capacity).collect();
        for (candidate, count) in self.candidates.iter().zip(counts) {
            for (bin, bytes) in &candidate.uses {
                if let Some(there) = left.get_mut(*bin) {
                    *there = there.saturating_sub(bytes.saturating_mul(*count));
                }
            }
        }
        left
    }

    /// Whether a placement keeps every rule: no bin over its capacity, no more replicas than wanted, nobody beside whom it may not
    /// be.
    #[must_use]
    pub fn keeps(&self, counts: &[u64]) -> bool {
        if counts.len() != self.candidates.len() {
            return false;
        }
        let mut used = vec![0_u128; self.bins.len()];
        let mut there = vec![0_u64; self.wanted.len() * self.hosts.max(1)];
        let mut replicas = vec![0_u64; self.wanted.len()];
        for (candidate, count) in self.candidates.iter().zip(counts) {
            for (bin, bytes) in &candidate.uses {
                if let Some(sum) = used.get_mut(*bin) {
                    *sum += u128::from(*bytes) * u128::from(*count);
                }
            }
            if let Some(sum) = there.get_mut(candidate.model * self.hosts.max(1) + candidate.host) {
                *sum += count;
            }
            if let Some(sum) = replicas.get_mut(candidate.model) {
                *sum += count;
            }
        }
        let fits = self.bins.iter().zip(&used).all(|(bin, sum)| u128::from(bin.capacity) >= *sum);
        let wanted = self.wanted.iter().zip(&replicas).all(|(wanted, count)| *count <= wanted.replicas);
        let on = |model: usize, host: usize| there.get(model * self.hosts.max(1) + host).copied().unwrap_or(0);
        let apart = self.wanted.iter().enumerate().all(|(model, wanted)| {
            (0..self.hosts).all(|host| {
                let count = on(model, host);
                (!wanted.spread || count <= 1) && (count == 0 || wanted.apart.iter().all(|other| on(*other, host) == 0))
            })
        });
        fits && wanted && apart
    }

    /// No placement is worth more: all device memory handed out to the replicas that give most for a byte, in parts if need be.
    #[must_use]
    pub fn bound(&self) -> u64 {
        let counted = |candidate: &Candidate| -> u64 {
            let counts = |bin: usize| self.bins.get(bin).is_some_and(|bin| bin.counts);
            candidate.uses.iter().filter(|(bin, _)| counts(*bin)).fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
        };
        let capacity: u128 = self.bins.iter().filter(|bin| bin.counts).map(|bin| u128::from(bin.capacity)).sum();
        let mut least: Vec<Option<u64>> = vec![None; self.wanted.len()];
        let mut hosts: Vec<Vec<usize>> = vec![Vec::new(); self.wanted.len()];
        for candidate in &self.candidates {
            let bytes = counted(candidate);
            if let Some(least) = least.get_mut(candidate.model) {
                *least = Some(least.map_or(bytes, |least| least.min(bytes)));
            }
            if let Some(hosts) = hosts.get_mut(candidate.model)
                && !hosts.contains(&candidate.host)
            {
                hosts.push(candidate.host);
            }
        }
        // Bytes, worth and number of each kind of replica that has a place at all.
        let mut kinds: Vec<(u64, u64, u64)> = Vec::new();
        for ((wanted, least), hosts) in self.wanted.iter().zip(&least).zip(&hosts) {
            if let Some(bytes) = least {
                let most = if wanted.spread { u64::try_from(hosts.len()).unwrap_or(u64::MAX) } else { u64::MAX };
                kinds.push((*bytes, wanted.worth, wanted.replicas.min(most)));
            }
        }
        // The most worth for a byte first, compared without division.
        kinds.sort_by(|one, other| (u128::from(other.1) * u128::from(one.0)).cmp(&(u128::from(one.1) * u128::from(other.0))));
        let (mut room, mut sum) = (capacity, 0_u128);
        for (bytes, worth, replicas) in kinds {
            let whole = if bytes == 0 { u128::from(replicas) } else { (room / u128::from(bytes)).min(u128::from(replicas)) };
            sum += whole * u128::from(worth);
            room -= whole * u128::from(bytes);
            if whole < u128::from(replicas) {
                // A part of one more, rounded up: still a bound.
                sum += (room * u128::from(worth)).div_ceil(u128::from(bytes.max(1))).min(u128::from(worth));
                break;
            }
        }
        u64::try_from(sum).unwrap_or(u64::MAX)
    }
}
