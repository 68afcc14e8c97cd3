//! The chips of a process. Those with the same history have one set of figures between them, so that what
//! happens on a mesh of many chips is entered once, not once for each chip.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Index;
use std::sync::Arc;

use super::Chip;

/// How many chips of a process are told apart.
const MOST_CHIPS: usize = 1 << 14;

/// The chips that a process opened.
#[derive(Clone, Debug, Default)]
pub struct Chips {
    groups: Vec<Group>,
    /// Each chip's group.
    of: BTreeMap<i32, usize>,
    /// How often a group was divided.
    divided: u64,
}

/// Chips with the same figures.
#[derive(Clone, Debug, Default)]
struct Group {
    figures: Chip,
    chips: BTreeSet<i32>,
}

/// Some chips, and which groups they make up.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Their ids.
    pub(super) chips: Arc<[i32]>,
    groups: Vec<usize>,
    /// As of when; None if it was not found out yet.
    divided: Option<u64>,
    /// Their ids' lowest seven bits, and whether that is all of them.
    bits: u128,
    is_exact: bool,
}

impl Place {
    pub(super) fn new(chips: Arc<[i32]>) -> Place {
        let bits = chips.iter().fold(0, |bits, chip| bits | 1 << (chip & 127));
        let is_exact = chips.iter().all(|chip| (0..128).contains(chip));
        Place { chips, groups: Vec::new(), divided: None, bits, is_exact }
    }

    /// Whether it has a chip in common with another.
    pub(super) fn meets(&self, other: &Place) -> bool {
        self.bits & other.bits != 0
            && (self.is_exact && other.is_exact
                || self.chips.iter().any(|chip| other.chips.contains(chip)))
    }

    /// About how much it takes to remember it, in bytes.
    pub(super) fn weight(&self) -> usize {
        8 * self.chips.len()
    }
}

impl Default for Place {
    fn default() -> Place {
        Place::new(Arc::from([]))
    }
}

impl Chips {
    /// The figures of a chip.
    pub fn get(&self, chip: &i32) -> Option<&Chip> {
        self.of.get(chip).and_then(|&group| self.groups.get(group)).map(|group| &group.figures)
    }

    /// All chips by their ids, in ascending order, with their figures.
    pub fn iter(&self) -> impl Iterator<Item = (&i32, &Chip)> {
        self.of.iter().filter_map(|(id, &group)| Some((id, &self.groups.get(group)?.figures)))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.of.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// Each set of figures, with how many chips have it.
    pub(super) fn figures(&self) -> impl Iterator<Item = (usize, &Chip)> {
        self.groups.iter().map(|group| (group.chips.len(), &group.figures))
    }

    /// Each set of figures.
    pub(super) fn figures_mut(&mut self) -> impl Iterator<Item = &mut Chip> {
        self.groups.iter_mut().map(|group| &mut group.figures)
    }

    /// Changes the figures of some chips, each set once. Chips that are not known are passed over.
    pub(super) fn change(&mut self, place: &mut Place, mut change: impl FnMut(&mut Chip)) {
        self.change_with_ids(place, |_, chip| change(chip));
    }

    /// The same, with the chips that each set is of.
    pub(super) fn change_with_ids(
        &mut self,
        place: &mut Place,
        mut change: impl FnMut(&BTreeSet<i32>, &mut Chip),
    ) {
        if place.divided != Some(self.divided) {
            self.find(&place.chips, &mut place.groups);
            place.divided = Some(self.divided);
        }
        for &group in &place.groups {
            if let Some(group) = self.groups.get_mut(group) {
                change(&group.chips, &mut group.figures);
            }
        }
    }

    /// Makes some chips known.
    pub(super) fn add(&mut self, chips: &[i32]) {
        let room = MOST_CHIPS.saturating_sub(self.of.len());
        let new = chips.iter().copied().filter(|chip| !self.of.contains_key(chip));
        let new: BTreeSet<i32> = new.take(room).collect();
        if new.is_empty() {
            return;
        }
        self.of.extend(new.iter().map(|&chip| (chip, self.groups.len())));
        self.groups.push(Group { figures: Chip::default(), chips: new });
    }

    /// The groups that some chips make up. Where they are part of a group, it is divided.
    fn find(&mut self, chips: &[i32], found: &mut Vec<usize>) {
        found.clear();
        if let [chip] = chips
            && let Some(&group) = self.of.get(chip)
            && self.groups.get(group).is_some_and(|group| group.chips.len() == 1)
        {
            found.push(group);
            return;
        }
        let mut parts: BTreeMap<usize, BTreeSet<i32>> = BTreeMap::new();
        for chip in chips {
            if let Some(&group) = self.of.get(chip) {
                parts.entry(group).or_default().insert(*chip);
            }
        }
        for (at, part) in parts {
            let new = self.groups.len();
            let Some(group) = self.groups.get_mut(at) else { continue };
            if part.len() == group.chips.len() {
                found.push(at);
                continue;
            }
            group.chips.retain(|chip| !part.contains(chip));
            let figures = group.figures.clone();
            self.of.extend(part.iter().map(|&chip| (chip, new)));
            self.groups.push(Group { figures, chips: part });
            self.divided += 1;
            found.push(new);
        }
    }

    /// About how much it takes to remember them, in bytes.
    pub(super) fn weight(&self) -> usize {
        64 * self.of.len() + size_of::<Group>() * self.groups.len()
    }
}

impl Index<&i32> for Chips {
    type Output = Chip;

    fn index(&self, chip: &i32) -> &Chip {
        &self.groups[self.of[chip]].figures
    }
}

impl<'a> IntoIterator for &'a Chips {
    type Item = (&'a i32, &'a Chip);
    type IntoIter = Box<dyn Iterator<Item = Self::Item> + 'a>;

    fn into_iter(self) -> Self::IntoIter {
        Box::new(self.iter())
    }
}
