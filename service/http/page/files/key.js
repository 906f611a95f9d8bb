// The service's key, kept in this tab. A browser may refuse to store it: then it is kept until a reload.

const NAME = "safelight-key";
let unstored = "";

export function readKey() {
  try {
    return sessionStorage.getItem(NAME) ?? unstored;
  } catch {
    return unstored;
  }
}

export function storeKey(key) {
  unstored = key;
  try {
    sessionStorage.setItem(NAME, key);
  } catch {
    // kept in `unstored`
  }
}
