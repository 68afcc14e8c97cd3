//! Cluster descriptors: what makes tt-metal open mock chips (its `TT_METAL_MOCK_CLUSTER_DESC_PATH`).
//!
//! The keys are those that tt-umd's cluster descriptor reads. Every chip is a card of its own on PCIe;
//! neighbours in the grid are linked over two Ethernet channels.

use std::fmt::Write;

/// The architecture of mock chips.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Arch {
    /// n150 cards.
    Wormhole,
    /// p150 cards.
    Blackhole,
}

/// A grid of mock chips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// What the chips are.
    pub arch: Arch,
    /// Rows of the mesh.
    pub rows: u32,
    /// Columns of the mesh.
    pub columns: u32,
}

/// How cards of one architecture are described.
struct Card {
    arch: &'static str,
    board: &'static str,
    /// What the board id starts with: the product's number, above 36 bits of serial number.
    product: u64,
    /// Rows or columns of cores that are switched off, as a bit mask each.
    harvest: u32,
    ethernet_harvest: u32,
    pcie_harvest: u32,
}

const N150: Card = Card {
    arch: "wormhole_b0",
    board: "n150",
    product: 0x18,
    harvest: 1 << 6,
    ethernet_harvest: 0,
    pcie_harvest: 0,
};

const P150: Card = Card {
    arch: "blackhole",
    board: "p150",
    product: 0x40,
    harvest: 0b11 << 6,
    ethernet_harvest: 1 << 5 | 1 << 8,
    pcie_harvest: 1 << 1,
};

const CHANNELS_PER_LINK: u32 = 2;

impl Cluster {
    /// A mesh of `chips` chips, as wide as such systems are built; None for numbers that aren't.
    pub fn of(arch: Arch, chips: u32) -> Option<Cluster> {
        let (rows, columns) = match chips {
            1 => (1, 1),
            2 => (1, 2),
            4 => (2, 2),
            8 => (2, 4),
            // Blackhole's p150 cards are not sold, nor accepted by tt-metal, as more than eight.
            32 if arch == Arch::Wormhole => (4, 8),
            _ => return None,
        };
        Some(Cluster { arch, rows, columns })
    }

    /// How many chips it has.
    pub fn chips(self) -> u32 {
        self.rows * self.columns
    }

    /// The descriptor, as YAML.
    pub fn descriptor(self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(self, out: &mut String) -> std::fmt::Result {
        let card = match self.arch {
            Arch::Wormhole => N150,
            Arch::Blackhole => P150,
        };
        let chips = || 0..self.chips();
        writeln!(out, "arch:")?;
        for chip in chips() {
            writeln!(out, "  {chip}: {}", card.arch)?;
        }
        if self.arch == Arch::Wormhole {
            writeln!(out, "chips:")?;
            for chip in chips() {
                writeln!(
                    out,
                    "  {chip}: [{}, {}, 0, 0]",
                    chip % self.columns,
                    chip / self.columns
                )?;
            }
        } else {
            writeln!(out, "chips: {{}}\nchip_unique_ids:")?;
            for chip in chips() {
                writeln!(out, "  {chip}: {}", board_id(&card, chip))?;
            }
        }
        writeln!(out, "ethernet_connections: [")?;
        for ((a, a_channel), (b, b_channel)) in self.links() {
            let end = |chip, channel| format!("{{chip: {chip}, chan: {channel}}}");
            writeln!(out, "  [{}, {}],", end(a, a_channel), end(b, b_channel))?;
        }
        writeln!(out, "]\nchips_with_mmio:")?;
        for chip in chips() {
            writeln!(out, "  - {chip}: {chip}")?;
        }
        writeln!(out, "harvesting:")?;
        for chip in chips() {
            writeln!(out, "  {chip}:")?;
            writeln!(out, "    noc_translation: true")?;
            writeln!(out, "    harvest_mask: {}", card.harvest)?;
            writeln!(out, "    dram_harvesting_mask: 0")?;
            writeln!(out, "    eth_harvesting_mask: {}", card.ethernet_harvest)?;
            writeln!(out, "    pcie_harvesting_mask: {}", card.pcie_harvest)?;
            writeln!(out, "    l2cpu_harvesting_mask: 0")?;
        }
        writeln!(out, "boards:")?;
        for chip in chips() {
            let (id, board) = (board_id(&card, chip), card.board);
            writeln!(
                out,
                "  - [{{board_id: {id}}}, {{board_type: {board}}}, {{chips: [{chip}]}}]"
            )?;
        }
        Ok(())
    }

    /// The Ethernet links: each end is a chip and its channel.
    fn links(self) -> Vec<((u32, u32), (u32, u32))> {
        let mut next_channel = vec![0; self.chips() as usize];
        let mut channel = |chip: u32| {
            let next = &mut next_channel[chip as usize];
            *next += 1;
            *next - 1
        };
        let mut links = Vec::new();
        for chip in 0..self.chips() {
            let (row, column) = (chip / self.columns, chip % self.columns);
            let right = (column + 1 < self.columns).then_some(chip + 1);
            let below = (row + 1 < self.rows).then_some(chip + self.columns);
            for neighbour in right.into_iter().chain(below) {
                for _ in 0..CHANNELS_PER_LINK {
                    links.push(((chip, channel(chip)), (neighbour, channel(neighbour))));
                }
            }
        }
        links
    }
}

fn board_id(card: &Card, chip: u32) -> u64 {
    card.product << 36 | u64::from(chip + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mesh_of_eight_links_every_pair_of_neighbours() {
        let cluster = Cluster::of(Arch::Wormhole, 8).unwrap();
        let links = cluster.links();
        // A 2x4 grid has 2*3 horizontal and 4 vertical pairs.
        assert_eq!(links.len() as u32, 10 * CHANNELS_PER_LINK);
        let mut ends: Vec<_> = links.iter().flat_map(|&(a, b)| [a, b]).collect();
        ends.sort_unstable();
        ends.dedup();
        assert_eq!(ends.len(), 2 * links.len(), "no channel is used twice");
    }

    #[test]
    fn only_meshes_that_are_built_can_be_had() {
        assert!(Cluster::of(Arch::Wormhole, 32).is_some());
        assert!(Cluster::of(Arch::Blackhole, 32).is_none());
        assert!(Cluster::of(Arch::Wormhole, 3).is_none());
        assert!(Cluster::of(Arch::Wormhole, 0).is_none());
    }
}
