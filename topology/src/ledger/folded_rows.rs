//! Continues connections that agents count in folded rows in one epoch and in rows of their own in another one.

use std::sync::Arc;

use super::{
    account::{Account, open_share::OpenShare},
    node_account::{NodeAccount, first_key},
};
use crate::{
    directory::is_special,
    flow::{FlowCounters, FlowKey},
};

impl NodeAccount {
    /// Takes connections that are preexisting in this flow's first report of an epoch from the accounts in which the last
    /// epoch has counted them: the folded row and the flows that it stands for. The sum of all of them counts nothing twice,
    /// in any order of the reports.
    pub(super) fn take_from_other_rows(&mut self, key: &FlowKey, counters: &FlowCounters) -> OpenShare {
        let known = self.flows.get(key).map(Arc::as_ref);
        let is_first = known.is_none_or(|flow| !flow.reported);
        if counters.preexisting == 0 || !is_first || is_special(key.remote) && !key.is_folded() {
            return OpenShare::default();
        }
        let open_before = known.map(Account::open_before).unwrap_or_default();
        let needed = OpenShare::preexisting(counters).minus(&open_before);
        let folded = key.folded();
        let mut taken = OpenShare::default();
        if needed.connections == 0 {
            return taken;
        }
        if *key != folded {
            let Some(row) = self.flow_mut(&folded) else { return taken };
            taken = row.give_open(&needed);
        }
        if taken.connections == needed.connections || self.without_unclaimed.contains(&folded) {
            return taken;
        }
        let of_cgroup = Arc::make_mut(&mut self.flows).range_mut(first_key(key.cgroup_id)..);
        for (other, flow) in of_cgroup.take_while(|(other, _)| other.cgroup_id == key.cgroup_id) {
            if other != key && *other != folded && other.folded() == folded && !is_special(other.remote) {
                taken = taken.plus(&Arc::make_mut(flow).give_open(&needed.minus(&taken)));
                if taken.connections == needed.connections {
                    return taken;
                }
            }
        }
        self.without_unclaimed.insert(folded);
        taken
    }
}
