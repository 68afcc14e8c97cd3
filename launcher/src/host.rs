//! The host, and this process's place among those that a launch engine started: its rank.

use std::fs;

use ttalloc_ring::RANK_VARIABLES;

/// The variables that tell the number of ranks, beside each of [`RANK_VARIABLES`].
///
/// tt-run needs none of its own: it starts the ranks by Open MPI's `mpirun`.
const SIZES: [&[&str]; RANK_VARIABLES.len()] = [
    &["OMPI_COMM_WORLD_SIZE"],
    &[],
    &["PMI_SIZE"],
    &["MV2_COMM_WORLD_SIZE"],
    &["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"],
];

/// A process's place among those that a launch engine started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rank {
    /// Its rank, from 0.
    pub rank: u32,
    /// How many there are; None if nothing tells.
    pub size: Option<u32>,
}

impl Rank {
    /// This process's; None if no launch engine has started it.
    pub fn of_this_process() -> Option<Rank> {
        Rank::find(|name| std::env::var(name).ok())
    }

    fn find(variable: impl Fn(&str) -> Option<String>) -> Option<Rank> {
        let number = |name: &str| variable(name)?.trim().parse().ok();
        Rank::variables().zip(SIZES).find_map(|(rank, sizes)| {
            let rank = number(rank)?;
            Some(Rank { rank, size: sizes.iter().find_map(|size| number(size)) })
        })
    }

    /// The variables' names.
    pub fn variables() -> impl Iterator<Item = &'static str> {
        RANK_VARIABLES.into_iter().filter_map(|name| name.to_str().ok())
    }
}

/// The host's name, as `uname -n` has it; empty if it can't be told.
pub fn name() -> String {
    let name = fs::read("/proc/sys/kernel/hostname").unwrap_or_default();
    String::from_utf8_lossy(&name).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Option<Rank> {
        Rank::find(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_first_rank_counts_with_its_own_size() {
        let slurm = [("SLURM_PROCID", "3"), ("SLURM_NTASKS", "8")];
        assert_eq!(of(&slurm), Some(Rank { rank: 3, size: Some(8) }));
        let step = [slurm.as_slice(), &[("SLURM_STEP_NUM_TASKS", "4")]].concat();
        assert_eq!(of(&step), Some(Rank { rank: 3, size: Some(4) }));
        let both = [slurm.as_slice(), &[("PMIX_RANK", "1")]].concat();
        assert_eq!(of(&both), Some(Rank { rank: 1, size: None }));
        let all =
            [both.as_slice(), &[("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "2")]]
                .concat();
        assert_eq!(of(&all), Some(Rank { rank: 0, size: Some(2) }));
    }

    #[test]
    fn what_is_no_number_is_no_rank() {
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("PMI_RANK", ""), ("SLURM_PROCID", "-1")]), None);
        assert_eq!(
            of(&[("PMI_RANK", "x"), ("SLURM_PROCID", "2"), ("SLURM_NTASKS", "many")]),
            Some(Rank { rank: 2, size: None })
        );
    }

    #[test]
    fn this_host_has_a_name() {
        assert!(!name().is_empty());
    }
}
