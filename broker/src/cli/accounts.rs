//! Service accounts, of proxies and of bridges; and what holds for the whole vendor.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::Method;
use rand_core::Rng as _;
use serde_json::json;
use tsp_wire::{
    ApiKey,
    account::{AccountId, env::ServiceAccount as EnvAccount, signed::Voucher},
    envelope::{PrivateKey, SigningKey},
};
use zeroize::Zeroizing;

use super::{
    Account, Kind, ServiceAccount, Vendor, Who,
    commands::{Desk, Done, FAILED, print, print_json},
};
use crate::{
    keys::random,
    model::{AccountDoc, AccountKind, NewAccount, VendorChange},
};

pub(super) async fn service_account(command: ServiceAccount) -> Done {
    match command {
        ServiceAccount::Create {
            who,
            name,
            kind,
            tags,
            api_key,
        } => create_account(&who, name, kind, tags, api_key).await,
        ServiceAccount::List { who } => {
            let desk = Desk::open(&who).await?;
            let accounts: Vec<AccountDoc> = desk.get("/admin/1/accounts").await?;
            print_json(&accounts)?;
            desk.close().await
        }
    }
}

async fn create_account(
    who: &Who,
    name: String,
    kind: Kind,
    tags: Vec<String>,
    api_key: Option<String>,
) -> Done {
    let api_key = api_key.map(Zeroizing::new).unwrap_or_else(|| {
        let mut bytes = Zeroizing::new([0; 24]);
        random().fill_bytes(bytes.as_mut_slice());
        // Some SDKs take nothing but base64 of the usual alphabet.
        Zeroizing::new(STANDARD.encode(bytes.as_slice()))
    });
    let api_key = ApiKey::new(api_key.as_str().to_owned())
        .ok_or("an API key has 1 to 512 visible characters of ASCII")?;
    let desk = Desk::open(who).await?;
    let keys = desk.keys()?;
    let config = desk.reserve().await?;
    let mut own = [0; 12];
    random().fill_bytes(&mut own);
    let account = EnvAccount {
        broker_url: desk.profile.broker.clone(),
        id: AccountId::new(own, &keys.signing.verifying()),
        config: u64::try_from(config).map_err(|_| FAILED)?,
        segment: keys.vendor.segment,
        encryption_key: PrivateKey::generate(&mut random()),
        signing_key: SigningKey::generate(&mut random()).ok_or(FAILED)?,
    };
    let public = account.encryption_key.public();
    let (kind, sealed_key, certificate) = match kind {
        Kind::Tsp => {
            let sealed = keys.sealed_to_account(config, &public).ok_or(FAILED)?;
            let certificate = keys.certify(config, &public).ok_or(FAILED)?;
            (AccountKind::Tsp, Some(sealed), certificate)
        }
        // It opens nothing. What it seals and assigns counts, since the vendor vouches for its signatures.
        Kind::Bridge => {
            let key = account.signing_key.verifying();
            let voucher = Voucher::Bridge.sign(&keys.signing, keys.vendor, &key);
            let certificate = STANDARD.encode(voucher.ok_or(FAILED)?);
            (AccountKind::Bridge, None, certificate)
        }
    };
    let new = NewAccount {
        config,
        id: account.id.to_string(),
        name,
        kind,
        encryption_key: STANDARD.encode(public.as_bytes()),
        signing_key: STANDARD.encode(account.signing_key.verifying().as_bytes()),
        sealed_key,
        certificate,
        epoch: keys.epoch.0,
        tags,
    };
    desk.tell(Method::POST, "/admin/1/accounts", &new).await?;
    print(&account.to_file(&api_key))?;
    desk.close().await
}

pub(super) async fn account(command: Account) -> Done {
    let Account::Revoke { who, config } = command;
    let desk = Desk::open(&who).await?;
    let path = format!("/admin/1/accounts/{config}");
    desk.tell(Method::DELETE, &path, &json!({})).await?;
    print(
        "Revoked: the broker refuses it from now on, and a proxy that runs with it stops within 24 hours.\n\
         What it has read it has read. Run `tsp-broker segment rotate`, so that it cannot open what it may get hold of later;\n\
         and if its file of variables leaked, have the tenants replace their KMS credentials.\n",
    )?;
    desk.close().await
}

pub(super) async fn vendor(command: Vendor) -> Done {
    let Vendor::Set {
        who,
        leasing_required,
    } = command;
    let desk = Desk::open(&who).await?;
    let wanted = VendorChange { leasing_required };
    desk.tell(Method::PUT, "/admin/1/vendor", &wanted).await?;
    desk.close().await
}
