//! One tenant's part of a simulated world, to be changed before the world begins.

use tsp_loadtest::kmssim::{
    AwsAccessKeyDoc, AwsKeyDoc, AwsRoleDoc, AzureAppDoc, AzureKeyDoc, AzureVaultDoc, GcpKeyDoc,
    ThalesKeyDoc, ThalesVersionDoc, WorldDoc,
};

use crate::support::kmssim::ClientKey;

/// A good RSA key that belongs to nobody at Google.
pub(super) const STRANGERS_KEY: &str =
    include_str!("../../../loadtest/src/kmssim/data/azure-client-key-TEST-ONLY.pem");

fn find<T>(entries: &mut [T], is_it: impl Fn(&T) -> bool) -> &mut T {
    let mut entries = entries.iter_mut();
    let found = entries.find(|entry| is_it(entry));
    found.expect("the sample has an entry for each of its tenants")
}

pub(super) fn aws_access_key<'a>(
    world: &'a mut WorldDoc,
    client: &ClientKey,
) -> &'a mut AwsAccessKeyDoc {
    let ClientKey::Aws { access_key_id, .. } = client else {
        panic!("{client:?} is not at AWS")
    };
    find(&mut world.aws.access_keys, |known| {
        known.access_key_id == *access_key_id
    })
}

pub(super) fn aws_role<'a>(world: &'a mut WorldDoc, client: &ClientKey) -> &'a mut AwsRoleDoc {
    let ClientKey::Aws { role_arn, .. } = client else {
        panic!("{client:?} is not at AWS")
    };
    find(&mut world.aws.roles, |known| {
        Some(&known.arn) == role_arn.as_ref()
    })
}

pub(super) fn aws_key<'a>(world: &'a mut WorldDoc, client: &ClientKey) -> &'a mut AwsKeyDoc {
    let ClientKey::Aws { key_id, .. } = client else {
        panic!("{client:?} is not at AWS")
    };
    find(&mut world.aws.keys, |known| known.arn == *key_id)
}

pub(super) fn gcp_key<'a>(world: &'a mut WorldDoc, client: &ClientKey) -> &'a mut GcpKeyDoc {
    let ClientKey::Gcp { crypto_key_id, .. } = client else {
        panic!("{client:?} is not at Google")
    };
    find(&mut world.gcp.keys, |known| {
        known.name.rsplit('/').next() == Some(crypto_key_id)
    })
}

pub(super) fn azure_app<'a>(world: &'a mut WorldDoc, client: &ClientKey) -> &'a mut AzureAppDoc {
    let ClientKey::Azure { client_id, .. } = client else {
        panic!("{client:?} is not at Azure")
    };
    find(&mut world.azure.apps, |known| known.client_id == *client_id)
}

pub(super) fn azure_vault<'a>(
    world: &'a mut WorldDoc,
    client: &ClientKey,
) -> &'a mut AzureVaultDoc {
    let ClientKey::Azure { vault_base_url, .. } = client else {
        panic!("{client:?} is not at Azure")
    };
    find(&mut world.azure.vaults, |known| {
        vault_base_url.ends_with(&known.host)
    })
}

pub(super) fn azure_key<'a>(world: &'a mut WorldDoc, client: &ClientKey) -> &'a mut AzureKeyDoc {
    let ClientKey::Azure { key_name, .. } = client else {
        panic!("{client:?} is not at Azure")
    };
    find(&mut world.azure.keys, |known| known.name == *key_name)
}

pub(super) fn thales_key<'a>(world: &'a mut WorldDoc, client: &ClientKey) -> &'a mut ThalesKeyDoc {
    let ClientKey::Thales { key_id, .. } = client else {
        panic!("{client:?} is not at Thales")
    };
    find(&mut world.thales.keys, |known| known.name == *key_id)
}

/// Gives the client a second key beside its own, which is called `other` (at AWS, `99999999-9999-4999-8999-999999999999`).
pub(super) fn add_other_key(world: &mut WorldDoc, client: &ClientKey) {
    match client {
        ClientKey::Aws { .. } => {
            let mut key = aws_key(world, client).clone();
            let (before, _) = key.arn.rsplit_once('/').expect("it is an ARN");
            key.arn = format!("{before}/99999999-9999-4999-8999-999999999999");
            key.aliases.clear();
            world.aws.keys.push(key);
        }
        ClientKey::Gcp { .. } => {
            let mut key = gcp_key(world, client).clone();
            let (before, _) = key.name.rsplit_once('/').expect("it is a path");
            key.name = format!("{before}/other");
            world.gcp.keys.push(key);
        }
        ClientKey::Azure { .. } => {
            let mut key = azure_key(world, client).clone();
            key.name = "other".into();
            key.versions[0].id = "0".repeat(32);
            world.azure.keys.push(key);
        }
        ClientKey::Thales { .. } => {
            let mut key = thales_key(world, client).clone();
            key.name = "other".into();
            key.versions = vec![ThalesVersionDoc {
                id: "0".repeat(64),
                ..key.versions[0].clone()
            }];
            world.thales.keys.push(key);
        }
    }
}
